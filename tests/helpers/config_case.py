"""The papers' configurations, whole and small."""

from importlib import import_module

ROBERTA, DEBERTA, VIT = "glue.roberta_base", "glue.deberta_v3_base", "vtab.vit_b16"


def get(name, arg=""):
    return import_module(f"configs.{name}").get_config(arg)


def tiny(name, arg):
    """Return a configuration with a model of a few features."""
    config = get(name, arg)
    config.model.settings.update(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=40,
    )
    return config
