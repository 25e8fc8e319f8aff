"""What memory does scoring with public reward models need?"""
