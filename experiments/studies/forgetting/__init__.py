"""What does a language model forget while it learns?"""
