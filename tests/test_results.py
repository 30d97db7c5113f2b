"""deploy/results.py: rows that survive a kill, the table and the regions made of them."""

import csv
import json

import pytest

from deploy import results


def row(number: int, **values) -> dict:
    return {"number": number, "stamp": [number, 0], "path": f"p{number}.png", "score": number / 10} | values


def test_rows_of_several_processes_and_runs_come_in_order(tmp_path):
    key = {"model": "tiny"}
    first = results.Journal(tmp_path, key)
    assert not first.take_over()
    second = results.Journal(tmp_path, key, process=1)
    for number in (0, 2, 4):
        first.append(row(number))
    for number in (1, 3):
        second.append(row(number), thumbnail=f"picture {number}".encode())
    first.close()
    second.close()
    later = results.Journal(tmp_path, key)
    assert later.take_over()
    assert later.finished() == {number: [number, 0] for number in range(5)}
    later.append(row(2, score=9.0))
    later.append(row(5))
    rows = list(later.read())
    assert [each["number"] for each in rows] == list(range(6)) and rows[2]["score"] == 9.0
    assert later.thumbnail(rows[3]["thumbnail"]) == b"picture 3"
    later.close()
    later.remove()
    assert not list(tmp_path.iterdir())


def test_a_line_that_a_kill_cut_off_is_passed_over(tmp_path):
    journal = results.Journal(tmp_path, {})
    journal.take_over()
    for number in range(3):
        journal.append(row(number))
    journal.close()
    (file,) = (tmp_path / results.UNFINISHED).glob("*.rows")
    file.write_bytes(file.read_bytes()[:-7])
    assert list(results.Journal(tmp_path, {}).finished()) == [0, 1]


def test_rows_of_another_key_are_deleted(tmp_path):
    journal = results.Journal(tmp_path, {"tile": None})
    journal.take_over()
    journal.append(row(0))
    journal.close()
    other = results.Journal(tmp_path, {"tile": 64})
    assert not other.take_over() and other.finished() == {}


@pytest.mark.parametrize("content", ["", "[", "3"])
def test_a_damaged_key_is_another_key(tmp_path, content):
    journal = results.Journal(tmp_path, {})
    journal.take_over()
    (tmp_path / results.UNFINISHED / "key.json").write_text(content)
    assert not results.Journal(tmp_path, {}).take_over()


def test_the_table(tmp_path):
    rows = [
        row(0, score=0.123456789, p_value=0.05, threshold=0.1, decision="anomalous", regions=2, width=3, height=4),
        row(1, path='a "b",\nc/ü.png', score=1.0, tile_max=None),
        {"number": 2, "path": "bad\udcff.png", "error": "cannot be read"},
    ]
    assert results.write_csv(tmp_path / "p.csv", rows) == 1
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == results.COLUMNS
    assert (read[0]["score"], read[0]["p_value"], read[0]["regions"], read[0]["error"]) == ("0.123457", "0.05", "2", "")
    assert (read[1]["path"], read[1]["score"], read[1]["tile_max"]) == ('a "b",\nc/ü.png', "1", "")
    assert (read[2]["path"], read[2]["score"], read[2]["error"]) == ("bad\\udcff.png", "", "cannot be read")


def test_regions_are_coco(tmp_path):
    region = {"bbox": [1, 2, 3, 4], "area": 9, "score": 0.5, "segmentation": [[1, 2, 3, 2, 3, 5]]}
    rows = [
        row(0, width=10, height=20, outlines=[region, region]),
        {"number": 1, "path": "x.png", "error": "cannot be read"},
        row(2, width=5, height=6, outlines=[]),
        row(3, width=7, height=8, outlines=[region]),
    ]
    results.write_regions(tmp_path / "r.json", lambda: iter(rows))
    coco = json.loads((tmp_path / "r.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "anomaly"}]
    assert [(image["id"], image["file_name"], image["width"], image["height"]) for image in coco["images"]] == [
        (1, "p0.png", 10, 20), (2, "p2.png", 5, 6), (3, "p3.png", 7, 8)
    ]  # fmt: skip
    assert [(each["id"], each["image_id"], each["category_id"]) for each in coco["annotations"]] == [
        (1, 1, 1), (2, 1, 1), (3, 3, 1)
    ]  # fmt: skip
    assert region.items() <= coco["annotations"][2].items()
    results.write_regions(tmp_path / "r.json", lambda: iter(()))
    assert json.loads((tmp_path / "r.json").read_text())["annotations"] == []


def test_names_of_results_never_meet():
    names = ["a/1.jpg", "a/1.png", "a/2.jpg", "b/1.jpg", "c.tif", "a/1.jpg.png", "x.y.bmp"]
    made = results.output_names(names)
    assert len(set(made.values())) == len(names)
    assert made["b/1.jpg"] == "b/1.png" and made["c.tif"] == "c.png" and made["x.y.bmp"] == "x.y.png"
    assert made["a/1.jpg"] == "a/1.jpg.png" and made["a/2.jpg"] == "a/2.jpg.png"
