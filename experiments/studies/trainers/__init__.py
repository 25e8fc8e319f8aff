"""How fast is a step here, against TRL's RewardTrainer?"""
