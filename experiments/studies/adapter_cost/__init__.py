"""What do adapters cost, beside each other and beside full fine-tuning?"""
