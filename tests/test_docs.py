"""The docs are about this repository: their links lead somewhere, and the commands, flags and modules they name exist."""

import ast
import json
import re
import shlex
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pretrained/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ROOMS = ("common", "sources", "models", "inference", "training", "scoring", "reporting")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ASSIGNMENT = re.compile(r"[A-Z_]+=.*")

page_by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# --------------------------------------------------------------------------- reading Markdown


def without_code(text: str) -> str:
    return SPAN.sub("", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = set()
    for title in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", LINK.sub(lambda link: link[0].split("]")[0], title).lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def code(text: str) -> list[str]:
    """Lines of shell blocks, indented lines and what stands in backticks."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "bash")]
    prose = FENCE.sub("", text)
    indented = re.findall(r"^ {4}(\S.*)$", prose, re.MULTILINE)
    return [*"".join(blocks).splitlines(), *indented, *SPAN.findall(prose)]


def commands(text: str) -> list[list[str]]:
    """The words of everything that runs a Python file, from the file's name on, and of what is nothing but flags."""
    found = []
    for line in code(text):
        for part in line.split("  #")[0].split("&&"):
            words = [word for word in shlex.split(part) if not ASSIGNMENT.fullmatch(word)]
            if words and words[0] in ("python", "python3", "torchrun"):
                file = next((index for index, word in enumerate(words) if word.endswith(".py")), None)
                words = [] if file is None else words[file:]
            if words and (words[0].startswith("--") or (words[0].endswith(".py") and len(words) > 1)):
                found.append(words)
    return found


# --------------------------------------------------------------------------- what is there


@lru_cache
def flags_of(program: str) -> frozenset[str]:
    """The flags of a program, without their dashes."""
    if program.startswith("benchmarks/"):
        tree = ast.parse((ROOT / program).read_text())
        settings = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
        return frozenset(field.target.id for field in settings.body if isinstance(field, ast.AnnAssign))
    if program == "train.py":
        from training.settings import Settings
    elif program == "generate.py":
        from generate import Settings
    elif program == "score.py":
        from score import Settings
    else:
        from evaluate import Settings
    fields = Settings.__dataclass_fields__
    return frozenset(fields) | {field.metadata["alias"] for field in fields.values() if field.metadata["alias"]}


def programs() -> list[str]:
    """Everything that the docs may run with flags of ours."""
    benchmarks = [path for path in (ROOT / "benchmarks").glob("*.py") if "class Settings" in path.read_text()]
    return ["train.py", "generate.py", "evaluate.py", "score.py", *(f"benchmarks/{path.name}" for path in benchmarks)]


def broken_links(text: str, page: Path) -> list[str]:
    """Links of a page's text to files or headings that are not there."""
    broken = []
    for link in LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        linked = text if target == page else target.read_text() if target.suffix == ".md" and target.exists() else ""
        if not target.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(link)
    return broken


def broken_commands(text: str) -> list[str]:
    """Commands that name a file or a flag that is not there."""
    broken = []
    for words in commands(text):
        program = "" if words[0].startswith("--") else words[0]
        if program and not (ROOT / program).is_file():
            broken.append(program)
        elif not program.startswith("tests/"):
            known = frozenset.union(*map(flags_of, [program] if program else programs()))
            flags = [word.split("=")[0] for word in words if word.startswith("--")]
            broken += [f"{program} {flag}" for flag in flags if flag[2:].replace("-", "_") not in known]
    return broken


def broken_modules(text: str) -> list[str]:
    """Python files in backticks that are not there."""
    named = [name for name in SPAN.findall(FENCE.sub("", text)) if re.fullmatch(r"[\w./-]+\.py", name)]
    return [name for name in named if not (ROOT / name).is_file()]


# --------------------------------------------------------------------------- tests


@page_by_page
def test_every_link_and_picture_leads_somewhere(page):
    assert not broken_links(page.read_text(), page)


@page_by_page
def test_every_command_names_a_program_and_flags_that_exist(page):
    assert not broken_commands(page.read_text())


@page_by_page
def test_every_module_in_backticks_exists(page):
    assert not broken_modules(page.read_text())


def test_what_is_broken_is_noticed():
    page = ROOT / "docs" / "method.md"
    text = "# A title: `code`, twice\n[a](../README.md) [b](#a-title-code-twice) [c](https://example.org/#x)\n"
    assert not broken_links(text, page)
    for link in ("nowhere.md", "../images/nowhere.png", "#another-title", "data.md#nowhere", "README.md"):
        assert broken_links(f"{text}[d]({link})", page) == [link]
    good = "`python train.py --epoch-prior 3` `--lr=0.1`\n```bash\npython benchmarks/scale.py --side 64  # --no\n```\n"
    assert not broken_commands(good) and len(commands(good)) == 3
    assert broken_commands("`A=1 python3 nowhere.py --k 3`") == ["nowhere.py"]
    assert broken_commands("    torchrun --nproc_per_node=2 train.py --epochs 3") == ["train.py --epochs"]
    assert broken_commands("`python benchmarks/scale.py --k 3`") == ["benchmarks/scale.py --k"]
    assert broken_commands("```bash\ncd here && python generate.py --epoch 3\n```") == ["generate.py --epoch"]
    assert broken_commands("`--epochs`") == [" --epochs"]
    assert broken_modules("`vqvae.py` `scoring/nowhere.py`") == ["scoring/nowhere.py"]


def test_the_readme_is_a_front_page_that_leads_to_every_other_page():
    readme = ROOT / "README.md"
    assert len(readme.read_bytes()) <= 12_000
    linked = {(ROOT / link.split("#")[0]).resolve() for link in LINK.findall(readme.read_text())}
    assert not [page for page in PAGES[1:] if page.resolve() not in linked]


def test_pictures_are_small():
    pictures = list((ROOT / "images").glob("*.png"))
    assert pictures
    assert not [
        picture.name
        for picture in pictures
        if picture.stat().st_size >= (500_000 if picture.stem == "oasis_real_or_drawn" else 300_000)
    ]


def test_every_module_of_the_rooms_is_on_the_page_of_the_rooms():
    named = set(SPAN.findall((ROOT / "docs" / "architecture.md").read_text()))
    modules = {str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).glob("*.py")}
    modules |= {path.name for path in ROOT.glob("*.py")}
    assert modules
    assert not {name for name in modules - named if not name.endswith("__init__.py")}


def test_the_readme_gives_the_scores_of_the_shipped_weights():
    scores = json.loads((ROOT / "pretrained" / "scores.json").read_text())["validate"]
    text, sharp, realism = (ROOT / "README.md").read_text(), scores["decoders"]["sharp"], scores["realism"]
    times = {name: f"{value['score'] / value['floor']:.1f}" for name, value in realism.items()}
    samples, real = scores["texture"]["samples"], scores["texture"]["real"]
    aucs = {f"{scores['decoders'][name]['classifier_auc']:.2f}" for name in ("faithful", "sharp")}
    aucs.add(f"{(1 + realism['classifier']['score']) / 2:.2f}")
    shown = [
        f"**{scores['ssim']:.4f}**",
        f"| {scores['ssim_frame']:.4f} |",
        f"| {scores['psnr']:.2f} |",
        f"| {scores['sharpness']:.3f} |",
        f"| {sharp['sharpness']:.3f}; {sharp['ssim']:.4f} |",
        f"| {scores['codes_used']}; {scores['perplexity']:.0f} |",
        f"| {scores['bits_per_code']:.3f}; {scores['bits_per_code_marginal']:.3f} |",
        f"{times['swd_0']} times as far from real slices as other real subjects are, their symmetry {times['symmetry']} times",
        f"the power of real detail ({scores['samples_sharpness']:.2f} in samples)",
        f"{samples['texture_kurtosis']:.1f} in samples, {real['texture_kurtosis']:.1f} in real slices",
        f"edges over smooth tissue: {samples['edge_to_smooth']:.1f}, real {real['edge_to_smooth']:.1f}",
        *(f"(AUC {auc})" for auc in aucs),
    ]
    assert not [part for part in shown if part not in text]
