"""What keeps the documentation true: checks of blocks and links, and the pages that are made from the code."""
