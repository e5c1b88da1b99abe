"""What if the machine were another? Routing traces through the engine on a virtual clock."""
