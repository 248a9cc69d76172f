"""The stages that run networks: teach, extract, distill, evaluate."""
