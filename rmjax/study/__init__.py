"""From one run to many: sweeps as data, plans of named cells, engines that run them, tables and pages made of what they found."""
