"""What operators write: YAML files in one folder, validated all at once into frozen settings."""
