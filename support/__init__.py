"""What any training program needs. Skip it on a first reading."""
