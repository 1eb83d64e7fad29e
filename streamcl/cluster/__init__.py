"""Does the controller's actions on Ray. The only folder that imports ray; its actors are thin."""
