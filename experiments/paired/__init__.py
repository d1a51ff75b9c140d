"""Methods beside one of them: equal budgets of choosing, seeds and examples."""
