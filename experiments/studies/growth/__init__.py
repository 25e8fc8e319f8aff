"""How does the cost grow with model, row, group and devices?"""
