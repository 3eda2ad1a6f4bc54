"""Pictures of a running sampler sent to the page that asked for it, in the colours of the VAE that is used."""
