"""What esp tells of itself in numbers.

calls     counts clients' calls when they have ended, and their seconds
"""
