"""Run as a script of its own: renders chat templates, with little time and memory.

`{"template", "special", "jobs": [[messages, prompt], ...]}` on standard input, a list
of texts on standard output. It imports nothing of the package and so starts at once.
"""

import datetime
import json
import sys

MEMORY = 2**30
CPU_SECONDS = 30
NO_JINJA = 3


def main() -> None:
    """Render what standard input asks for."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    except (ImportError, OSError, ValueError):
        pass  # not everywhere; the parent's limit on time holds still
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        sys.exit(NO_JINJA)
    given = json.load(sys.stdin)

    def refuse(message):
        raise TemplateError(message)

    def tojson(value, indent=None):
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = datetime.datetime.now().strftime
    try:
        template = environment.from_string(given["template"])
        texts = [
            template.render(
                **given["special"], messages=messages, add_generation_prompt=prompt
            )
            for messages, prompt in given["jobs"]
        ]
        json.dump(texts, sys.stdout)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}"[:300])


if __name__ == "__main__":
    main()
