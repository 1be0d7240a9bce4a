"""What each tenant may use, and what it used."""
