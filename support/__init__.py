"""What any training program needs, and a reader of the method may trust unread."""
