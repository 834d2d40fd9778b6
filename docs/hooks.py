"""Build pages from what is written elsewhere: the tutorials' scripts, CONTRIBUTING.md, the benchmarks' results.

MkDocs calls the functions whose names begin with `on_`.
"""

import html
import json
import re
import textwrap
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
TUTORIALS = ("equinox", "flax_nnx", "huggingface", "keras")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have no file of their own in `docs/`, and the benchmarks' pictures."""
    pages = {
        "contributing.md": _read("CONTRIBUTING.md"),
        "changelog.md": _read("CHANGELOG.md"),
        "benchmarks.md": benchmarks(_read("docs/benchmarks.md.in")),
        **{f"tutorials/{name}.md": tutorial(_read(f"examples/tutorial_{name}.py"), name) for name in TUTORIALS},
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    scripts = dict.fromkeys(script for name in TUTORIALS for script in scripts_of(name))
    for script in scripts:  # for readers who have no checkout
        path, source = f"tutorials/{script}", str(ROOT / "examples" / script)
        files.append(File.generated(config, path, abs_src_path=source, inclusion=InclusionLevel.INCLUDED))
    for picture in sorted((ROOT / "benchmarks/results").glob("cpu*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    for before, after in (
        ("](../README.md)", "](index.md)"),
        ("](../CONTRIBUTING.md)", "](contributing.md)"),
        ("](docs/", "]("),
    ):
        markdown = markdown.replace(before, after)
    return markdown


def on_page_content(content: str, **_: object) -> str:
    """Write formulas as MathML, which browsers show by themselves."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>',
        lambda found: formula(html.unescape(found[3]), block=found[2] == "["),
        content,
        flags=re.DOTALL,
    )


def formula(latex: str, *, block: bool) -> str:
    """Return a formula as MathML; one that stands alone scrolls where a screen is too narrow."""
    latex = latex.strip().replace("{aligned}", "{split}")  # which latex2mathml knows by this name
    made = convert(latex, display="block" if block else "inline")
    return f'<div class="formula">{made}</div>' if block else made


def tutorial(script: str, name: str) -> str:
    """Return the page of a script: what follows `# %%` in comments is prose, all else code."""
    title, _, cells = script.partition("\n# %%\n")
    heading = title.splitlines()[0].strip('"').rstrip(".")
    own, *imported = scripts_of(name)
    links = ", ".join(f"[`{x}`]({x})" for x in imported)
    page = [
        f"# {heading}\n",
        f"This page is made from the script [`{own}`]({own}). To run it, save it beside what it imports: {links}.\n",
    ]
    for cell in cells.split("\n# %%\n"):
        lines = cell.splitlines()
        end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        page.append("\n".join(line[2:] for line in lines[:end]) + "\n")
        if code := "\n".join(lines[end:]).strip():
            code = re.sub("  # noqa.*", "", code)
            page.append(f"```python\n{code}\n```\n")
    page.append("## What the script imports\n")
    for file in imported:
        code = textwrap.indent(f"```python\n{_read(f'examples/{file}').strip()}\n```", "    ")
        page.append(f'??? note "{file}"\n\n{code}\n')
    return "\n".join(page)


def scripts_of(name: str) -> list[str]:
    """Return the file of a tutorial's script, and those of the modules beside it that it imports."""
    files = [f"tutorial_{name}.py"]
    for file in files:  # which grows on the way
        found = re.findall(r"^(?:from|import) (_\w+)", _read(f"examples/{file}"), re.MULTILINE)
        files += [f"{x}.py" for x in found if f"{x}.py" not in files]
    return files


def benchmarks(page: str) -> str:
    """Return the page with the tables of `benchmarks/results` in their places."""
    parts = {
        "cpu": _cpu(),
        "machine": _machine(),
        "tpu": _table_of("benchmarks/results/tpu.md"),
        "gpu_model": _table_of("benchmarks/results/gpu_model.md"),
        "cores": _read("benchmarks/results/cores-cpu.md").strip(),
    }
    for name, part in parts.items():
        page = page.replace(f"{{{{ {name} }}}}", part)
    return page


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def _table_of(path: str) -> str:
    return "\n".join(line for line in _read(path).splitlines() if line.startswith("|"))


def _machine() -> str:
    machine = json.loads(_read("benchmarks/results/cpu.json"))["machine"]
    return f"{machine['threads']} threads of an {machine['cpu']}, on {machine['date'][:10]}"


def _cpu() -> str:
    """Return each job and shape in a row, with the times of all libraries that were measured."""
    measured = json.loads(_read("benchmarks/results/cpu.json"))["measurements"]
    peers = list(dict.fromkeys(row["peer"] for row in measured))
    lines = ["| job | T, N, C, S | " + " | ".join(peers) + " |", "| --- | --- |" + " ---: |" * len(peers)]
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for row in measured:
        shape = ", ".join(f"{row['shape'][letter]:,}" for letter in "TNCS")
        rows.setdefault((row["job"], shape), {})[row["peer"]] = row["median_seconds"]
    for (job, shape), times in rows.items():
        if not any(times.values()):
            continue  # only errors were measured
        cells = [f"{1000 * times[peer]:.2f}" if times.get(peer) else "" for peer in peers]
        lines.append("| " + " | ".join([job, f'<span class="shape">{shape}</span>', *cells]) + " |")
    return "\n".join(lines)
