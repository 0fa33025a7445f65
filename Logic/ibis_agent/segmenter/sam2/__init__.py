"""SAM 2 and MedSAM2, on the network of the sam2 package."""
