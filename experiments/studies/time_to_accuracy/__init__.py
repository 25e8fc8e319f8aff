"""How soon does a reward model that is trained here have the accuracy of one that TRL trains?"""
