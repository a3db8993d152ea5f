"""The systems: each joins units and neural modules behind the same verbs (from_pretrained, save_pretrained, embed)."""
