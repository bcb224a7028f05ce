"""What runs cmcl: images, environments, alerts, and the programs that check them."""
