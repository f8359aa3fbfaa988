"""The caption cleaning gives LlamaGen's text, and captions are read from the forms they come in."""

import json

import pytest
from user_errors import tells

from llamagen.conditions.captions import Captions, clean_caption, read_captions, warn_of_empty
from masc.runtime.errors import InputError

# What `T5Embedder.text_preprocessing` of LlamaGen ce98ec4 gives, run on these captions. Twice cleaned, as there:
# the oddities (a host name gone but its query left, the first of four digits kept) are the training data's.
WORKED = [
    ("A photo of a cat.", "a photo of a cat."),
    ("see https://example.com/a/b?x=1 now", "see ?x=1 now"),
    ("http:/x https:///y https:%41", "x y"),
    ("www:abc www.shop.ru/item-1/", "bc"),
    ("go.comet.italy", ""),
    ("x.it@y", "x. it"),
    ("end.com.", "."),
    ("mail me@site.com please", "mail me please"),
    ("user@mail.co.uk", "user uk"),
    ("<person> riding a horse", "person riding a horse"),
    ("<b>bold</b> &amp; <i>it</i>", "bold it"),
    ("<a href='x'>link</a> <br/> <unclosed", "link <unclosed"),
    ("&lt;script&gt;alert(1)&lt;/script&gt;", ""),
    ("&quot;quoted&quot;", "quoted"),
    ("&#65;&#66; caps", "ab caps"),
    ("&amp;amp;amp; x", "amp; x"),
    ("@nick_name hi", "hi"),
    ("日本の猫 neko ひらがな カタカナ 한국", "の neko ひらがな カタカナ 한국"),
    ("dash – — ‑ ― 〜 ﹣ end", "dash end"),
    ("`a´ «b» “c” ‘d’", 'a" "b" "c" \'d'),
    ("192.168.0.1 host", "host"),
    ("item 3:45  ", "item 3:45"),
    ("line\\nbreak", "line break"),
    ("#12 #1234 #12345 #ff00ff #abc", "1234 abc"),
    ("1234567 99999 123456", "99999"),
    ("cat.png dog.JPEG my_file.webp x.pdf", ""),
    ("png image jpg images of webp", "of"),
    ('"""SALE""" \'\'x\'\' ... ..', 'sale" "x'),
    ("***WOW*** (a) [b] {c} | \\ / ~", "wow a b c"),
    ("a . b . c", "a b c"),
    ("this_is_my_cute_cat_photo", "this is my cute cat photo"),
    ("one-two three-four", "one-two three-four"),
    ("jc6640 JC6640vc 6640vc231 j2d1a2a", ""),
    ("4k8k", "4k8k"),
    ("Free shipping worldwide", "worldwide"),
    ("worldwide free shipping! free download free", "!"),
    ("click here click for more click on this", "click here"),
    ("page 12 of book", "of book"),
    ("1920x1080 10.5×20 5х6 3x", "3x"),
    ("5 x 6", "5 x 6"),
    ("title : subtitle", "title: subtitle"),
    ("hello,world.foo/bar", "hello, world. foo bar"),
    ('"quoted text"', "quoted text"),
    ("_lead trail-", "lead trail"),
    (".hidden", ""),
    (":colon;", "colon;"),
    ("schÃ¶n cafÃ© Â£5 â€œmojibakeâ€\x9d", 'schã¶n cafã â£5 "mojibake"'),
    ("a%20b+c%2Fd", "a b c d"),
    ("2019-05-06 and 05/06/2019", "2019-05-06 and 05 06 2019"),
    ("ﬁne ｆｕｌｌ width", "fine full width"),
    ("été naïve İstanbul", "été naïve i̇stanbul"),
    ("emoji 😀 ❤️", "emoji 😀 ❤️"),
    ("\u2028sep\x85z", "sep…z"),
    ("tab\tnew\nline", "tab new line"),
    ("$5.99 50%", "$5.99 50%"),
    ("rock 'n' roll", "rock 'n' roll"),
    ("", ""),
]


@pytest.mark.parametrize(("caption", "cleaned"), WORKED)
def test_the_cleaning_gives_the_text_of_the_training_data(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_a_text_file_has_a_caption_a_line(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("\ufeffa cat\r\n  two dögs \u2028 \x0b \x85 here\t\r\na\rb &amp; c\n\n \n", "utf-8", newline="")
    captions = read_captions(path)
    assert captions.texts == ["a cat", "two dögs \u2028 \x0b \x85 here", "a\rb &amp; c"] and captions.images is None
    path.write_bytes(b"a cat\rtwo dogs\r")
    assert read_captions(path).texts == ["a cat", "two dogs"]


def test_no_caption_moves_up_to_the_place_of_a_blank_line(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a cat\n\na dog\n \t\na bird\n")
    with pytest.raises(InputError, match=r"line 2 of .*captions.txt is blank, as are 1 others: image i shows"):
        read_captions(path)
    table = tmp_path / "coco_captions.csv"
    table.write_text("Prompt\na cat\n")
    with tells(r"csv is a table, whose first line is no caption; .*make coco-captions ARGS=.?captions="):
        read_captions(table)


def test_captions_that_the_cleaning_empties_are_told_with_the_first_of_them(caplog):
    warn_of_empty(Captions(["a cat", "@someone", "戴帽子的猫", "cat.png"]))
    assert "3 of 4 captions are empty after LlamaGen's cleaning, the first is caption 2 ('@someone')" in caplog.text
    caplog.clear()
    warn_of_empty(Captions(["a cat", "été"]))
    assert not caplog.records


def test_coco_annotations_come_in_the_order_of_their_ids(tmp_path):
    rows = [(9, 30, "third."), (7, 12, "second. More."), (9, 5, "first")]
    path = tmp_path / "captions_val2014.json"
    annotations = [{"image_id": image, "id": number, "caption": text} for image, number, text in rows]
    path.write_text(json.dumps({"info": {}, "images": [{"id": 9}, {"id": 7}], "annotations": annotations}))
    everything = read_captions(path)
    assert everything.texts == ["first", "second. More.", "third."] and everything.images == ["9", "7", "9"]
    first = read_captions(path, first_only=True, first_sentence=True)
    assert first.texts == ["first", "second"] and first.images == ["9", "7"]


def test_a_folder_of_llamagens_lists_is_read_in_the_order_of_names(tmp_path):
    for name, number in (("000001", 1), ("000000", 0)):
        lines = [{"image_path": f"{number}/{row}.jpg", "text": [f"blip {number}{row}", "llava"]} for row in (0, 1)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    captions = read_captions(tmp_path)
    assert captions.texts == ["blip 00", "blip 01", "blip 10", "blip 11"]
    assert captions.images == ["0/0.jpg", "0/1.jpg", "1/0.jpg", "1/1.jpg"]
    assert read_captions(tmp_path / "000001.jsonl", column=1).texts == ["llava", "llava"]
    with pytest.raises(InputError, match=r"000000.jsonl, line 1 holds 2 caption\(s\), so there is none at column=2"):
        read_captions(tmp_path, column=2)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.json", '{"images": []}', "annotations"),
        ("c.json", "not json", "Invalid JSON"),
        ("c.json", '{"annotations": [{"image_id": 1, "id": 1, "caption": 5}]}', "string.*found 5"),
        ("c.json", '{"annotations": [{"image_id": [1], "id": 1, "caption": "a"}]}', "image_id"),
        ("c.json", '["a", 3]', "found 3"),
        ("c.jsonl", '{"image_path": "a"}', "line 1 does not hold what it should .*text"),
        ("c.jsonl", '\n{"image_path": "a", "text": "a cat"}', "line 2 .*array.*found 'a cat'"),
        ("c.jsonl", '{"image_path": "a", "text": [null]}', "found None"),
        ("c.txt", "\n\n", "there are no captions"),
        ("c.txt", "a\0c\0a\0t\0", "null bytes, as in UTF-16"),
        ("c.csv/x", "", "no captions at"),
        ("c.CSV", "Prompt\na cat\n", "is a table, whose first line is no caption"),
        ("c.JSON", '{"images": []}', "annotations"),
        ("c.JSONL", '{"image_path": "a"}', "line 1 does not hold what it should"),
        (
            "c.ndjson",
            '{"image_path": "a", "text": ["a cat"]}',
            "expected lines of captions in a .txt, found ",
        ),
        ("c.parquet", "PAR1", "expected lines of captions in a .txt"),
    ],
)
def test_another_form_is_refused_by_name(tmp_path, name, content, words):
    path = tmp_path / name
    if "/" not in name:
        path.write_text(content)
    with pytest.raises(InputError, match=words) as error:
        read_captions(path)
    assert str(path) in str(error.value)
