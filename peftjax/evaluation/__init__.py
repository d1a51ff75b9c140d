"""Language models examined: choices by likelihood, answers by text, perplexity."""

from peftjax.evaluation import bbh, gsm8k, mmlu
from peftjax.evaluation.answers import answer, continued
from peftjax.evaluation.choices import Question, Scores, score_choices
from peftjax.evaluation.harness import harness_model
from peftjax.evaluation.perplexity import TokenLoss, token_loss

__all__ = [
    "Question",
    "Scores",
    "TokenLoss",
    "answer",
    "bbh",
    "continued",
    "gsm8k",
    "harness_model",
    "mmlu",
    "score_choices",
    "token_loss",
]
