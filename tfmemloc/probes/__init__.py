"""The probes: where does the memory of an example sit?"""
