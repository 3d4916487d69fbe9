"""What the site's pages are made of; read as package data."""
