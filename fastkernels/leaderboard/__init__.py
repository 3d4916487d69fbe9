"""What runs came to, side by side: entries as JSON, and a static site of them."""
