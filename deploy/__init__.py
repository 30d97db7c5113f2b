"""What runs without torch: sources of pictures, decisions, results on disk, the report."""
