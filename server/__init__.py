"""Start a real tritonserver on a vlembed model repository: a container's own, or the one in nvidia-pytriton's wheel.

Standard library only, but for backends/, which runs inside the server.
"""
