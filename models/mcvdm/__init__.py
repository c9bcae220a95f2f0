"""MC-VDM: landmarks and one portrait to video, by diffusion over triplane latents."""
