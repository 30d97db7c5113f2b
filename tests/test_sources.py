"""deploy/sources.py: pictures from files, folders, globs and lists, and what is refused."""

import os

import pytest

from deploy.sources import check_apart, count_shared, find_pictures
from utils import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """pics/{b.jpg, a/1.png, a/2.TIF} and things that are not pictures."""
    for name in ("pics/b.jpg", "pics/a/1.png", "pics/a/2.TIF", "pics/a/.hidden.png", "pics/notes.md", "other/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "pics" / ".cache").mkdir()
    (tmp_path / "pics" / ".cache" / "x.png").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*sources):
    return [picture.name for picture in find_pictures(list(sources))]


def test_folders_are_searched_and_mirrored(folder):
    assert names("pics") == ["a/1.png", "a/2.TIF", "b.jpg"]
    assert [picture.path for picture in find_pictures(["pics/"])] == ["pics/a/1.png", "pics/a/2.TIF", "pics/b.jpg"]


def test_files_and_globs_in_the_order_given(folder):
    assert names("other/c.png", "pics/b.jpg") == ["c.png", "b.jpg"]
    assert names("pics/*.jpg", "pics/a") == ["b.jpg", "1.png", "2.TIF"]
    assert names("pics/**/*.png") == ["a/1.png"]
    assert names("*") == ["other/c.png", "pics/a/1.png", "pics/a/2.TIF", "pics/b.jpg"]


def test_a_name_with_brackets_is_a_name(folder):
    (folder / "shot[1].png").touch()
    assert names("shot[1].png") == ["shot[1].png"]


def test_lists_name_pictures_from_here_or_from_their_own_place(folder):
    (folder / "pics" / "list.txt").write_text(
        f"\ufeffpics/b.jpg\n\n  a/1.png \n{folder}/other/c.png\n", encoding="utf-8"
    )
    assert names("pics/list.txt") == ["pics/b.jpg", "a/1.png", f"{str(folder).lstrip('/')}/other/c.png"]


def test_a_picture_named_twice_is_taken_once(folder):
    assert names("pics", "pics/a/../b.jpg") == ["a/1.png", "a/2.TIF", "b.jpg"]


def test_links_are_followed_once_and_loops_end(folder):
    (folder / "pics" / "a" / "loop").symlink_to(folder / "pics")
    (folder / "pics" / "again").symlink_to(folder / "pics" / "a")
    (folder / "pics" / "z").symlink_to(folder / "other")
    assert names("pics") == ["a/1.png", "a/2.TIF", "b.jpg", "z/c.png"]
    for number in range(12):  # so many ways back would be searched for years
        (folder / "pics" / "a" / f"loop{number}").symlink_to(folder / "pics")
    assert names("pics/**/*.png") == ["a/1.png", "z/c.png"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([""], "SOURCE: an empty name"),
        (["nowhere"], "SOURCE 'nowhere': no such file or folder"),
        (["nowhere/*.png"], r"SOURCE 'nowhere/\*.png': nothing matches; check the pattern"),
        (["pics/*.md"], r"'pics/\*.md': no pictures in it \(suffixes .png"),
        (["pics/notes.md"], "'pics/notes.md': neither a picture .* nor a .txt list"),
        (["empty"], "SOURCE 'empty': no pictures in it"),
        (["list.txt"], "'list.txt', line 2: no such picture 'gone.png'; the list has a path a line"),
        (["blank.txt"], "'blank.txt': no pictures in it"),
        (["latin.txt"], "'latin.txt': cannot be read as a list of paths"),
        (["pics/b.jpg", "same"], "'pics/b.jpg' and 'same/b.jpg' would both be 'b.jpg' in the results"),
        (["pipe"], "SOURCE 'pipe': neither a file nor a folder"),
    ],
)
def test_what_is_refused_is_one_line(folder, sources, message):
    (folder / "empty").mkdir()
    (folder / "same").mkdir()
    (folder / "same" / "b.jpg").touch()
    (folder / "list.txt").write_text("pics/b.jpg\ngone.png\n")
    (folder / "blank.txt").write_text("\n\n")
    (folder / "latin.txt").write_bytes(b"b\xfcrste.png\n")
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match=message) as error:
        find_pictures(sources)
    assert "\n" not in str(error.value)


def test_results_do_not_lie_among_pictures(folder):
    pictures = find_pictures(["pics"])
    check_apart(folder / "results", ["pics"], pictures)
    with pytest.raises(InputError, match="lies inside the source 'pics'"):
        check_apart(folder / "pics" / "results", ["pics"], pictures)
    with pytest.raises(InputError, match="pictures in 'pics/a' lie inside --save_path pics"):
        check_apart(folder.joinpath("pics").relative_to(folder), ["pics/a/1.png"], find_pictures(["pics/a/1.png"]))


def test_shared_pictures_are_counted(folder):
    (folder / "link.png").symlink_to(folder / "pics" / "a" / "1.png")
    assert count_shared(find_pictures(["pics"]), find_pictures(["link.png", "other"])) == 1
