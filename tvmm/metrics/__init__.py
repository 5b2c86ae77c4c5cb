"""What a machine counts: the model of it, its names, rates between two looks, and the endpoint for Prometheus."""
