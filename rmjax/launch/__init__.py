"""Jobs on other machines: a spec becomes scripts and commands, one file per target; nothing here starts anything by itself."""
