"""What people see of a clip while it is sampled: small pictures in the autoencoder's colours, and how often."""
