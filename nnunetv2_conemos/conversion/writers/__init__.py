"""Write label maps in the formats that clinics read."""
