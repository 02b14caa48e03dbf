"""The run's own page, `report.md`, and the score table that the CLIs print."""

import statistics
from pathlib import Path
from typing import Any

from common.files import write_text

ROWS = (  # key in scores.json, how it is called, format
    ("subjects", "subjects", "d"),
    ("slices", "slices", "d"),
    ("ssim", "SSIM, whole slice", ".4f"),
    ("ssim_frame", "SSIM, content frame", ".4f"),
    ("psnr", "PSNR, whole slice (dB)", ".2f"),
    ("psnr_frame", "PSNR, content frame (dB)", ".2f"),
    ("ssim_foreground", "SSIM, foreground", ".4f"),
    ("psnr_foreground", "PSNR, foreground (dB)", ".2f"),
    ("mae", "mean absolute error, whole slice", ".4f"),
    ("mae_foreground", "mean absolute error, foreground", ".4f"),
    ("sharpness", "sharpness: fine power, decoded / real", ".3f"),
    ("codes_used", "codes used", "d"),
    ("perplexity", "perplexity of the codes", ".1f"),
    ("entropy", "bits per code, entropy of all codes", ".3f"),
    ("codes_per_slice", "codes per slice", "d"),
    ("bits_per_slice_fixed", "bits per slice, uncompressed codes", ".0f"),
    ("bits_per_code_marginal", "bits per code, positional marginal", ".3f"),
    ("bits_per_code", "bits per code, prior", ".3f"),
    ("bits_per_code_train", "bits per code, prior, on training maps", ".3f"),
    ("bits_per_code_told", "bits per code, prior told the slice below", ".3f"),
    ("bits_per_code_told_train", "bits per code, prior told the slice below, on training maps", ".3f"),
    ("bits_per_code_zlib", "bits per code, zlib", ".3f"),
    ("bits_per_code_lzma", "bits per code, lzma", ".3f"),
    ("bits_per_slice", "bits per slice, prior", ".0f"),
)
SECOND_LEVEL = (  # key in `detail` of scores.json, how it is called, format
    ("codes_used", "codes used", "d"),
    ("perplexity", "perplexity of the codes", ".1f"),
    ("codes_per_slice", "codes per slice", "d"),
    ("bits_per_code_frequencies", "bits per code, code frequencies", ".3f"),
    ("bits_per_code_marginal", "bits per code, positional marginal", ".3f"),
    ("bits_per_code", "bits per code, prior told the first level", ".3f"),
    ("bits_per_code_train", "bits per code, prior told the first level, on training maps", ".3f"),
    ("bits_per_code_told", "bits per code, prior told the first level and the slice below", ".3f"),
    ("bits_per_slice", "bits per slice, prior told the first level", ".0f"),
)
DECODERS = {  # name in `decoders` of scores.json, how it is called
    "first": "first level alone",
    "faithful": "reconstruction decoder",
    "sharp": "sharp decoder",
}
DETAIL = {  # key in scores.json, how it is called
    "texture_kurtosis": "texture_kurtosis: of its distribution in tissue, 3 for noise",
    "edge_to_smooth": "edge_to_smooth: its power at the strongest edges / in smooth tissue",
    "tissue_noise": "tissue_noise: its standard deviation in white matter, grey levels",
}
PERFECT = (
    "A ratio of 1 is as far as other real subjects are: what perfect samples have on average. classifier: |2 AUC - 1| of "
    "networks on subjects that they have not seen; patch_classifier: of patches of 16x16 pixels by the same "
    "networks. texture_kurtosis, edge_to_smooth, tissue_noise: |ln (samples / real)|."
)
OF_HEADS = (
    "neighbour_ssim, ssim_2, ...: SSIM of slices so far apart; code_agreement: share of the codes that the next slice has too; "
    "outline, ventricles: how areas bend along the head; sagittal, coronal: of cuts. Slices that are too alike are as far from "
    "real ones as those that do not fit each other; the means say which it is."
)
PICTURES = (
    ("vqvae_train_status.png", "Training of the VQ-VAE"),
    ("detail_train_status.png", "Training of the second level of codes"),
    ("detail.png", "What the second level adds"),
    ("original.png", "Original slices"),
    ("reconst.png", "The same slices, reconstructed"),
    ("prior_train_status.png", "Training of the prior"),
    ("detail_prior_train_status.png", "Training of the second level's prior"),
    ("sharp_train_status.png", "Training of the sharp decoder"),
    ("sharpness.png", "What the sharp decoder restores"),
    ("test_q.png", "Codes q(z|x) of real slices"),
    ("test_imgs.png", "Decoded"),
    ("generated_q.png", "Codes drawn from the prior"),
    ("generated_imgs.png", "Decoded"),
    ("generated_q2.png", "Codes drawn from the prior, second set"),
    ("generated_imgs2.png", "Decoded"),
    ("codes_and_slices.png", "Code maps beside the slices they decode to"),
    ("real_and_generated.png", "Real, reconstructed and generated slices of the same positions"),
    ("full_size.png", "A real slice at full size, its reconstructions, and a drawn one of the same position"),
    ("real_or_drawn.png", "Real and drawn slices at full size, shuffled: which are which?"),
    ("scores_by_slice.png", "Scores by slice number"),
    ("worst_reconstructions.png", "The worst reconstructions"),
    ("codebook.png", "The codes, each decoded alone"),
    ("bits_by_position.png", "Where the bits are"),
    ("realism.png", "How far samples are from real slices"),
    ("realism_first_level.png", "The same of samples as the first level alone paints them"),
    ("closest_training_slices.png", "The samples nearest to training slices"),
    ("nearest_training_slices.png", "Samples picked at random, and their nearest training slices"),
    ("drawn_heads.png", "Whole heads that were drawn, and real ones"),
    ("heads_along_slices.png", "How alike slices of a head are to the next: bands hold the middle 80 % of heads"),
    ("architecture.png", "Architecture"),
)
WITH_HEADS = (
    "drawn_heads.png",
    "heads_along_slices.png",
)  # shown beside scores of heads alone: earlier ones may lie there still


def table(scores: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, a column a split, that also reads well on a terminal. `scores`: of each split, as in `scores.json`."""
    names = list(scores)
    lines = [("", *names), ("---", *("---:" for _ in names))]
    detail = {name: each.get("detail", {}) for name, each in scores.items()}
    for values, rows, level in ((scores, ROWS, ""), (detail, SECOND_LEVEL, "second level: ")):
        for key, title, form in rows:
            if any(key in values[name] for name in names):
                lines.append((f"{level}{title}", *(_cell(values[name], key, form) for name in names)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths))
        )
        + " |"
        for line in lines
    )


def _cell(scores: dict[str, float], key: str, form: str) -> str:
    """A score, with its interval where it has one."""
    if key not in scores:
        return ""
    interval = [format(scores[f"{key}_{end}"], form) for end in ("low", "high") if f"{key}_{end}" in scores]
    return format(scores[key], form) + (f" [{', '.join(interval)}]" if interval else "")


def of_samples(scores: dict[str, Any]) -> str:
    """What a split's scores say of levels, decoders and samples, as Markdown: realism, copies and what was left out."""
    parts = []
    if "decoders" in scores:
        parts.append(_of_decoders(scores["decoders"]))
    if scores.get("rate_distortion"):
        parts.append(_of_rates(scores["rate_distortion"]))
    painted = f"{scores.get('samples')} samples, {_decoder(scores)} decoder"
    first = scores.get("first_level", {})
    if "realism" in scores:
        parts += [_of_realism(painted, scores["realism"], first.get("realism", {})), PERFECT]
    if scores.get("texture", {}).get("real"):
        columns = {painted: scores["texture"]["samples"], "real slices": scores["texture"]["real"]}
        if "texture" in first:
            columns = {"first level alone": first["texture"]["samples"]} | columns
        rows = [
            f"| {DETAIL[name]} | " + " | ".join(f"{values[name]:.3g}" for values in columns.values()) + " |"
            for name in DETAIL
            if all(name in values for values in columns.values())
        ]
        head = f"| where fine detail lies, above 0.2 cycles a pixel | {' | '.join(columns)} |\n|---{'|--:' * len(columns)}|"
        parts.append("\n".join([head, *rows]))
    if "samples_sharpness" in scores:
        parts.append(f"Sharpness of the samples: {scores['samples_sharpness']:.3f} of real slices'.")
    if "copies" in scores:
        copies = scores["copies"]
        parts.append(
            f"{copies['listed']} of {scores['samples']} samples ({100 * copies['share']:.1f} %) are nearer to a training slice "
            "than 99 % of held-out slices of their position are, in pixels and in codes."
            + (f" In codes of the second level {copies['detail_listed']} are." if "detail_listed" in copies else "")
        )
    if "heads" in scores:
        parts += _of_heads(scores["heads"])
    parts += [_of_groups(column, table) for column, table in scores.get("by_group", {}).items()]
    parts += [f"Note: {note}." for note in scores.get("notes", [])]
    return "\n\n".join(parts)


def _decoder(scores: dict[str, Any]) -> str:
    return "sharp" if scores.get("decoder") == "sharp" else "reconstruction"


def _of_distances(about: str, values: dict[str, dict[str, float]]) -> str:
    """Distances beside their floors as Markdown."""
    rows = [
        f"| {name} | {value['score']:.4g} | {value['floor']:.4g} | {_ratio(value):.1f} |"
        for name, value in values.items()
    ]
    return "\n".join([f"| {about} | score | of other real subjects | ratio |\n|---|--:|--:|--:|", *rows])


def _ratio(value: dict[str, float]) -> float:
    return value["score"] / max(value["floor"], 1e-12)


def _of_heads(heads: dict[str, Any]) -> list[str]:
    """What scores of whole heads say, as Markdown: distances, plain means, drift and copies."""
    painted, means, parts = f"{heads['count']} heads, {_decoder(heads)} decoder", heads["means"], []
    if "distances" in heads:
        parts.append(_of_distances(f"distance from {heads['real']} real heads, {painted}", heads["distances"]))
    columns = [means[name] for name in ("drawn", "real", "reconstructed")]
    rows = [f"| {name} | {' | '.join(_known(each, name) for each in columns)} |" for name in means["drawn"]]
    head = f"| mean over whole heads | {painted} | real heads | real heads, from their codes |\n|---|--:|--:|--:|"
    parts += ["\n".join([head, *rows]), OF_HEADS]
    if "drift" in heads:
        rows = [
            f"| {_span(step['distances'])} | {_median(step['heads'])} | {_median(step['singles'])} | "
            f"{'' if step['overall'] is None else format(100 * step['overall'], '+.0f')} |"
            for step in heads["drift"]
        ]
        head = (
            "| slices from the first that is drawn | median ratio of realism, slices of heads | slices drawn alone | "
            "heads are worse by, % |\n|---|--:|--:|--:|"
        )
        parts += ["\n".join([head, *rows])]
    return parts + ([_of_head_copies(heads)] if "copies" in heads else [])


def _span(distances: list[int]) -> str:
    return " to ".join(map(str, dict.fromkeys((distances[0], distances[-1]))))


def _median(values: dict[str, dict[str, float]]) -> str:
    return f"{statistics.median(map(_ratio, values.values())):.2f}" if values else ""


def _of_head_copies(heads: dict[str, Any]) -> str:
    """How many drawn heads are listed as copies, and which."""
    copies, others = heads["copies"], len(heads["copies"]["held_out"])
    nearest = [
        f"head {index} is nearest to {person}, at {ratio:.2f} of the distance to the next one (as are {100 * share:.0f} % of its "
        "slices)"
        for index, (person, ratio, share) in enumerate(zip(copies["people"], copies["ratios"], copies["shares"]))
    ]
    listed = [said for said, ratio in zip(nearest, copies["ratios"]) if ratio < copies["threshold"]]
    first = nearest[min(range(len(nearest)), key=copies["ratios"].__getitem__)]
    limit = "1st percentile" if others >= 100 else "least"
    return (
        f"{len(listed)} of {heads['count']} heads are nearer to one training person than to any other by more than real held-out "
        f"heads are: at less than {copies['threshold']:.2f} of the distance to the next, the {limit} of {others}. If none were a "
        f"copy, {copies['by_chance']:.1f} would be on average, at most. {'; '.join(listed) or f'The first: {first}'}."
    )


def _of_decoders(decoders: dict[str, dict[str, float]]) -> str:
    """Reconstructions by each decoder, and what of it the slices have, as Markdown."""
    there, real = [name for name in DECODERS if name in decoders], decoders.get("real", {})
    names = [name for name in decoders[there[0]] if all(name in decoders[each] for each in there)]
    rows = [
        f"| {name.replace('_', ' ')} | "
        + " | ".join(f"{decoders[each][name]:.4g}" for each in there)
        + f" | {_known(real, name)} |"
        for name in names
    ]
    titles = [DECODERS[each] for each in there]
    head = f"| reconstructions | {' | '.join(titles)} | the slices themselves |\n|---{'|--:' * len(titles)}|--:|"
    aucs = "`classifier auc`: on subjects that the networks have not seen; 0.5 is chance. `patch auc`: patches of 16x16 pixels."
    return "\n".join([head, *rows, "", aucs])


def _of_rates(rates: dict[str, dict[str, float]]) -> str:
    """What each level of codes costs and what is had for it, as Markdown."""
    rows = [
        f"| {name} | {rate['bits_per_slice']:.0f} | {rate['ssim']:.4f} | {rate['ssim_frame']:.4f} | {rate['psnr']:.2f} |"
        for name, rate in rates.items()
    ]
    head = "| levels of codes | bits per slice, priors | SSIM, whole slice | SSIM, content frame | PSNR (dB) |"
    return "\n".join([f"{head}\n|---|--:|--:|--:|--:|", *rows])


def _of_realism(painted: str, found: dict[str, dict[str, float]], first: dict[str, dict[str, float]]) -> str:
    """Distances of samples, and of what the first level alone paints of them, from real slices, as Markdown."""
    rows = []
    for name, value in found.items():
        floor = max(value["floor"], 1e-12)
        cells = [f"{value['score']:.4g}", f"{value['floor']:.4g}", f"{value['score'] / floor:.1f}"]
        cells += [f"{first[name]['score'] / floor:.1f}" if name in first else ""] if first else []
        rows.append(f"| {name} | {' | '.join(cells)} |")
    titles = ["score", "of other real subjects", "ratio", *(["ratio, first level alone"] if first else [])]
    head = f"| distance from real slices, {painted} | {' | '.join(titles)} |\n|---{'|--:' * len(titles)}|"
    return "\n".join([head, *rows])


def _known(values: dict[str, float], name: str) -> str:
    return f"{values[name]:.4g}" if name in values else ""


def _of_groups(column: str, table: dict[str, dict[str, float]]) -> str:
    """Scores by group of a condition as Markdown."""
    names = list(next(iter(table.values())))
    rows = [
        f"| {group} | " + " | ".join(f"{values[name]:.4g}" for name in names) + " |" for group, values in table.items()
    ]
    head = f"| {column} | {' | '.join(name.replace('_', ' ') for name in names)} |\n|---" + "|--:" * len(names) + "|"
    return "\n".join([head, *rows])


def _splits(data: dict[str, Any]) -> str:
    """The splits of a summary in words."""
    return ", ".join(
        f"{name} {each['slices']} slices of {each['subjects']} subjects" for name, each in data["splits"].items()
    )


def _key(numbers: dict[str, list[int]]) -> str:
    """Which slices of the shuffled picture are which."""
    return "".join(f"\n\n{name.capitalize()}: {', '.join(map(str, each))}." for name, each in numbers.items())


def write(
    folder: Path, config: dict[str, Any], scores: dict[str, dict[str, Any]], other: dict[str, Any] | None = None
) -> None:
    """Write `report.md`: data, scores, pictures, settings. other: a summary of the data scored where it is not the run's own."""
    data, told = config["data"], {name: of_samples(values) for name, values in scores.items()}
    title, about = f"# {folder.name}", f"Data: {data['title']}. {_splits(data)}."
    if other is not None:
        title = f"# A run trained on {data['title']}, scored on other data: {other['title']}"
        about = f"Scored: {other['title']}. {_splits(other)}.\n\nTrained on: {data['title']}. {_splits(data)}."
    settings = "\n".join(f"| `--{name}` | {value} |" for name, value in config["flags"].items())
    versions = ", ".join(f"{name} {value}" for name, value in config["versions"].items())
    heads = any("heads" in values for values in scores.values())
    key = next((_key(values["real_or_drawn"]) for values in scores.values() if "real_or_drawn" in values), "")
    pictures = "\n\n".join(
        f"## {title}\n\n![{title}](images/{name})" + (key if name == "real_or_drawn.png" else "")
        for name, title in PICTURES
        if (folder / "images" / name).exists() and (heads or name not in WITH_HEADS)
    )
    samples = "".join(f"### Samples beside the {name} split\n\n{text}\n\n" for name, text in told.items() if text)
    notes = "".join(f"\nNote: {note}.\n" for note in (other or data)["notes"])
    write_text(
        folder / "report.md",
        f"""{title}

{about}
{notes}
## Scores

{table(scores)}

{samples}
Every score is over all slices of the split; in brackets its 95 % interval over subjects: Student's t
below 15 of them, else by resampling them. The foreground is
what is brighter than 16 of 255 in the real slice. SSIM is the 11x11 Gaussian one; on the whole slice, so that it compares with
published figures, and on the content frame, because constant background raises it. Sharpness is the
reconstructions' power between a quarter and half of the sampling frequency as a share of the slices'. Bits are per code or slice;
uncompressed codes cost log2 K bits each.

{pictures}

## Settings

| flag | value |
|---|---|
{settings}

{versions}
""",
    )
