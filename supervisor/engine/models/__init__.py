"""Model files: what lies in a folder, what a header says, what the page cache holds."""
