"""What people look at: a report of neurons in one HTML file, and what all such pages share."""
