"""Where adapters come from: sources are found, checked and measured before they are stored."""
