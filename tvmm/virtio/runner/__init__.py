"""What moves requests: threads and tasks between the queues of a device and its backend. The models know none of it."""
