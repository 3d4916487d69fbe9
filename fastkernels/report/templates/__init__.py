"""What report pages are made of; read as package data."""
