if __name__ != "kdtool.cli":
    raise ImportError("this folder is the package 'kdtool.cli': import that name")
