"""Programs of ours that are asked questions, in processes of their own beside the controller.

There belongs what keeps the interpreter's lock for long, or may die of what it is given.
"""
