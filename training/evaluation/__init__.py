"""What training.evaluate is made of: pictures with their truth, measuring, keeping, figures, table, page."""
