"""What is true of scenes, in the words of the world's vocabulary."""

from .pictures import Scenes


def truth(scenes: Scenes) -> list[set[str]]:
    """The objects and the colour or place of every scene: labels for `score`."""
    drawn = (scenes.scene(index) for index in range(scenes.count))
    return [{*scene.objects, scene.background} for scene in drawn]
