"""From files as clinics keep them to a partially labelled dataset, and back."""
