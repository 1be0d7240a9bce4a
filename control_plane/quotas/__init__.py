"""What a tenant may use and has used."""
