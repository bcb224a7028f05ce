"""What every part of the control plane names: errors, job states, principals, settings, clock, loops."""
