"""Does MetaRM help where the policy moved?"""
