"""What would POLAR's runs need and at best reach on slices of TPUs?"""
