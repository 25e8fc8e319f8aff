"""What does MetaRM's second gradient cost, in time and memory?"""
